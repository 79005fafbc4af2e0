//! Scripted LLM provider and load tools.
