"""One file a training method, all with the signature of `losses.signature.Loss`."""
