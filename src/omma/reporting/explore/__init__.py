"""A collection as a map: coordinates, clusters, findings, thumbnails, and the page that shows them."""
