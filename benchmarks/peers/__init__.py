"""Steps of other repositories, imported from a path that the user gives.

The only folder that imports PyTorch; nothing else imports it, it runs in the workers of
`benchmarks/train_step` under a Python of the user's choice.
"""
