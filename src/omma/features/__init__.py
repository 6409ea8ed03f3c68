"""Features of images: as an array, or as a table of vectors that several processes write.

table.py splits the table into shard files and joins them; local.py and ray.py are the two engines that fill
the shards.
"""
