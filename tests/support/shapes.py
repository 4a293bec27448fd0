"""Tiny models that are small enough to enumerate, and peaked enough for few draws to tell."""

# Half the texts end by EOS within four tokens; two query heads share a key head.
ENDING = dict(vocab=6, dim=16, heads=2, kv_heads=1, ffn=32, scale=2.0, seed=4)
# The embedding is the head as well; grouped heads, two layers, EOS in a quarter of the texts.
TIED = dict(vocab=6, heads=4, kv_heads=2, ffn=32, scale=2.0, seed=3, tied=True)
# EOS is out of reach, so every text takes all its tokens.
ENDLESS = dict(vocab=6, dim=16, heads=2, kv_heads=2, ffn=32, scale=2.0, seed=5, eos_bias=-15.0)
# "ab" is one token, "a" and "b" are too: a text has several spellings.
SPELLINGS = dict(vocab=7, dim=16, heads=2, kv_heads=2, ffn=32, scale=2.0, seed=4, eos_bias=-2.0)

# Ids of the tiny tokenizer.
BOS, EOS, A, B, C, D, AB = range(7)
