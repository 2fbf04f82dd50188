"""What drafts tokens by computing them: a model, a draft head or an assistant."""
