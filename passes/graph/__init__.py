"""What passes share: walking over graphs, editing them, naming their content, clustering them. No passes here."""
