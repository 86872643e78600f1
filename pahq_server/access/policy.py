"""What a caller must be to make a call: one entry for every RPC there is."""

from __future__ import annotations

import enum


class Scope(enum.Enum):
    """Who may make a call."""

    PUBLIC = "public"  # whoever can reach the server
    USER = "user"  # whoever is known, each with resources of their own
    ADMIN = "admin"


POLICY = {
    "grpc.health.v1.Health/Check": Scope.PUBLIC,
    "grpc.health.v1.Health/Watch": Scope.PUBLIC,
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Scope.USER,
    "pahq.v1.DiscoveryService/CreateDiscovery": Scope.USER,
    "pahq.v1.DiscoveryService/GetDiscovery": Scope.USER,
    "pahq.v1.DiscoveryService/ListDiscoveries": Scope.USER,
    "pahq.v1.DiscoveryService/CancelDiscovery": Scope.USER,
    "pahq.v1.DiscoveryService/DeleteDiscovery": Scope.USER,
    "pahq.v1.DiscoveryService/WatchDiscovery": Scope.USER,
    "pahq.v1.DiscoveryService/GetCircuit": Scope.USER,
    "pahq.v1.DiscoveryService/EvaluateCircuit": Scope.USER,
    "pahq.v1.ModelService/ListModels": Scope.USER,
    "pahq.v1.ModelService/GetModel": Scope.USER,
    "pahq.v1.ModelService/TokenizeTexts": Scope.USER,
    "pahq.v1.PatchingService/OpenSession": Scope.USER,
    "pahq.v1.PatchingService/ScoreCircuits": Scope.USER,
    "pahq.v1.PatchingService/CommitCircuit": Scope.USER,
    "pahq.v1.PatchingService/CloseSession": Scope.USER,
    "pahq.v1.ServerService/GetServerInfo": Scope.USER,
}
