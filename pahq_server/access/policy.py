"""The access policy: one entry for every RPC, saying what its caller must be."""

from __future__ import annotations

import enum


class Scope(enum.Enum):
    """What a caller must be to make a call."""

    PUBLIC = "public"  # anybody who can reach the server; no credentials are looked at
    USER = "user"  # any known user; names of other users' resources are answered with NOT_FOUND
    ADMIN = "admin"  # a user with admin rights


# An RPC without an entry is refused, and a test compares the keys with what the server really serves.
POLICY = {
    "grpc.health.v1.Health/Check": Scope.PUBLIC,
    "grpc.health.v1.Health/Watch": Scope.PUBLIC,
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Scope.USER,
    "pahq.v1.GenerationService/GenerateSamples": Scope.USER,
    "pahq.v1.JobService/CreateJob": Scope.USER,
    "pahq.v1.JobService/GetJob": Scope.USER,
    "pahq.v1.JobService/ListJobs": Scope.USER,
    "pahq.v1.JobService/CancelJob": Scope.USER,
    "pahq.v1.JobService/DeleteJob": Scope.USER,
    "pahq.v1.JobService/WatchJob": Scope.USER,
    "pahq.v1.JobService/GetArtifact": Scope.USER,
    "pahq.v1.ModelService/ListModels": Scope.USER,
    "pahq.v1.ModelService/GetModel": Scope.USER,
    "pahq.v1.ModelService/TokenizeTexts": Scope.USER,
    "pahq.v1.ModelService/PredictTokens": Scope.USER,
    "pahq.v1.ModelService/CheckTask": Scope.USER,
    "pahq.v1.PatchingService/OpenSession": Scope.USER,
    "pahq.v1.PatchingService/ScoreCircuits": Scope.USER,
    "pahq.v1.PatchingService/CommitCircuit": Scope.USER,
    "pahq.v1.PatchingService/CloseSession": Scope.USER,
    "pahq.v1.PatchingService/EvaluateCircuits": Scope.USER,
    "pahq.v1.PatchingService/EvaluateNodes": Scope.USER,
    "pahq.v1.ServerService/GetServerInfo": Scope.USER,
}
