"""One recorded run of a network, and what it shows: cuts, layouts, costs."""
