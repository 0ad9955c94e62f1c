"""Language models: loading, tokenizers, chat formats, and an engine that decodes many conversations at once."""
