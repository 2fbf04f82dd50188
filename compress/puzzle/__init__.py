"""Students whose layers differ: alternatives of every layer, distilled, scored and chosen."""
