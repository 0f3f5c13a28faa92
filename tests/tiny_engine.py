"""llama.cpp's own server over a model of half a megabyte with random weights: a real engine, offline, in a second.

Run as a program: `python tiny_engine.py PORT MODEL [SLOTS]`. It writes the model to the file MODEL and serves it on
loopback, as many requests at once as it has slots, until its standard input is closed. What it generates is noise, with
bytes in it that are no text on their own: the right food for a proxy that must not touch a byte.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
import xllamacpp

WIDTH, HEADS, HIDDEN, BLOCKS = 64, 4, 128, 2
CONTROL, BYTE, NORMAL = 3, 6, 1
UNKNOWN, BEGIN, END = 0, 1, 2


def vocabulary() -> list[tuple[bytes, float, int]]:
    """Return token, score and type: three special ones, every byte, every lower-case letter, and the space mark."""
    special = [(b"<unk>", 0.0, 2), (b"<s>", 0.0, CONTROL), (b"</s>", 0.0, CONTROL)]
    every_byte = [(b"<0x%02X>" % value, -20.0, BYTE) for value in range(256)]
    letters = [(bytes([value]), -float(value), NORMAL) for value in range(ord("a"), ord("z") + 1)]
    return [*special, *every_byte, *letters, ("\u2581".encode(), -1.0, NORMAL)]


def write_model(path: Path) -> None:
    """Write a llama model with random weights, the same each time."""
    tokens, scores, types = zip(*vocabulary(), strict=True)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(tokens))
    writer.add_token_scores(list(scores))
    writer.add_token_types(list(types))
    writer.add_unk_token_id(UNKNOWN)
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}\n{% endfor %}")

    weights = np.random.default_rng(20_240_601)
    shapes = {"token_embd": (len(tokens), WIDTH), "output": (len(tokens), WIDTH)}
    norms = ["output_norm"]
    for block in range(BLOCKS):
        shapes |= {f"blk.{block}.attn_{part}": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")}
        shapes |= {f"blk.{block}.ffn_{part}": (HIDDEN, WIDTH) for part in ("gate", "up")}
        shapes[f"blk.{block}.ffn_down"] = (WIDTH, HIDDEN)
        norms += [f"blk.{block}.attn_norm", f"blk.{block}.ffn_norm"]
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", (weights.standard_normal(shape) / 2).astype(np.float32))
    for name in norms:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(port: int, model: Path, slots: int = 1) -> None:
    """Serve until standard input is closed."""
    write_model(model)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.port = port
    parameters.n_ctx = 1024 * slots
    parameters.n_parallel = slots
    parameters.warmup = False
    # Several threads wait for each other by spinning, which takes minutes where others want the processors too.
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(parameters)
    assert server.listening_address
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
