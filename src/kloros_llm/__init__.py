"""What stays on the host when Ansible has left; `core` is what the collection's modules share."""
