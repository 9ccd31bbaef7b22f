"""Vectors of texts by a sentence-transformers model, an optional package; loaded at the first text."""

import importlib.util
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from arm_rl.core.errors import UserError

_LOADING = threading.Lock()  # of the module: an embedder pickles before its first text


class TextEmbedder:
    """Gives a text a vector of length 1; texts of like meaning get vectors that lie close.

    A model reads only the first words of a long page (256 or 512 tokens, as it says): the words of the whole page are found by full text.
    """

    def __init__(self, model: str) -> None:
        if importlib.util.find_spec("sentence_transformers") is None:
            raise UserError(
                f"model: {model!r} needs the package sentence-transformers, which is not installed: install it (the extra 'embeddings'), "
                "or leave model out and search by words"
            )
        self.model = model  # a name on the hub, or a folder
        self._loaded: Any = None

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of the texts.

        Returns:
            [number of texts, dimension], float32.
        """
        with _LOADING:
            if self._loaded is None:
                from sentence_transformers import SentenceTransformer

                self._loaded = SentenceTransformer(self.model)
        vectors = self._loaded.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32).reshape(len(texts), -1)
