"""Making kits: choices, the project file, the provisioner, and kits as files."""
