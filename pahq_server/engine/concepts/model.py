"""Encoder and decoder of a codebook, and their weights as one vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from pahq_server.core.concepts import CodebookSettings

# How much of the encoded state is new: at most half of it, .275 at first.
ALPHA = 0.2


class Encoder(nn.Module):
    """Changes states a little: z = (1 - m) x + m LayerNorm(W x + b), with m = .5 sigmoid(alpha).

    Args:
        width: d_model.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.alpha = nn.Parameter(torch.tensor(ALPHA))

    def forward(self, x: Tensor) -> Tensor:
        """Encodes states: [N, d]."""
        m = 0.5 * torch.sigmoid(self.alpha)
        encoded: Tensor = (1 - m) * x + m * self.norm(self.linear(x))
        return encoded


class Decoder(nn.Module):
    """Makes states of the higher layer from codes, by attention over the tokens of a window.

    As published, tokens attend to all of their window, both ways and without positions. There is no dropout,
    because the draw of codes is noise enough and weights would need more draws.

    Args:
        settings: of the codebook.
    """

    def __init__(self, settings: CodebookSettings) -> None:
        super().__init__()
        # One by one, since nn.TransformerDecoder would give all layers the same first weights.
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                settings.width, settings.heads, settings.hidden, dropout=0.0, batch_first=True
            )
            for _ in range(settings.layers)
        )
        self.output = nn.Linear(settings.width, settings.width)

    def forward(self, codes: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
        """Decodes windows.

        Args:
            codes: of the tokens: [windows, tokens, d].
            memory: what they attend to beside each other, of the same shape.
            padding: where a window has no token: bool, [windows, tokens].

        Returns:
            [windows, tokens, d], in the units of `CodebookTraining.scale`.
        """
        x = codes
        # Other kernels add in an order of their own on some devices, or do so differently in every run.
        with sdpa_kernel(SDPBackend.MATH):
            for layer in self.layers:
                x = layer(x, memory, tgt_key_padding_mask=padding, memory_key_padding_mask=padding)
        decoded: Tensor = self.output(x)
        return decoded


class CodebookModel(nn.Module):
    """Encoder and decoder. Its parameters go in one vector, those of the encoder first.

    Args:
        settings: of the codebook.
    """

    def __init__(self, settings: CodebookSettings) -> None:
        super().__init__()
        self.encoder = Encoder(settings.width)
        self.decoder = Decoder(settings)


def first_weights(settings: CodebookSettings) -> Tensor:
    """Returns the weights that training starts with, by the seed: float32, [settings.weights]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = CodebookModel(settings)
    return parameters_to_vector(model.parameters()).detach()


def model_of(settings: CodebookSettings, weights: Tensor) -> CodebookModel:
    """Returns a model with these weights, in their dtype and on their device."""
    with torch.device("meta"):
        model = CodebookModel(settings)
    model = model.to_empty(device=weights.device).to(weights.dtype)
    vector_to_parameters(weights.clone(), model.parameters())
    return model.eval()


def encoder_of(width: int, weights: Tensor) -> Encoder:
    """Returns an encoder with these weights, in their dtype and on their device."""
    encoder = Encoder(width).to(weights.device, weights.dtype)
    vector_to_parameters(weights.clone(), encoder.parameters())
    return encoder.eval()


def in_windows(flat: Tensor, lengths: Sequence[int]) -> Tensor:
    """Puts tokens into windows: [tokens, ...] to [windows, most tokens, ...], with zeros after the last."""
    return nn.utils.rnn.pad_sequence(list(flat.split(list(lengths))), batch_first=True)


def padding_of(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Returns where windows have no token: bool, [windows, most tokens]."""
    counts = torch.tensor(lengths, device=device)
    return torch.arange(max(lengths), device=device) >= counts[:, None]
