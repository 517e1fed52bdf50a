"""Other projects' quantizers on our models; each is imported only by its own adapter."""
