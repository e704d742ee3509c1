"""Adapters for training frameworks, one module each: import the one you use, such as `flatwise.frameworks.hugging_face`."""
