"""What transformers calls the key/value cache: `cache` from 5.24 on, `past_key_values` before."""

from __future__ import annotations

from dataclasses import fields

from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE = "cache" if "cache" in {f.name for f in fields(CausalLMOutputWithPast)} else "past_key_values"
"""Name of the argument of a forward, of the field of its output, and of the entry among generate's model inputs."""
