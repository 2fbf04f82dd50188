"""What Gemma's layers have on their residual stream, beside mixers and MLPs."""
