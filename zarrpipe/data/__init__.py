"""Fields, systems and batches, on which every other subpackage builds."""
