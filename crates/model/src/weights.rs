//! Hugging Face weight files: safetensors, one file or shards with an index, memory-mapped.
