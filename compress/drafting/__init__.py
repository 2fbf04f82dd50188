"""Students that draft for their teacher: few layers, the teacher's own embedding and head."""
