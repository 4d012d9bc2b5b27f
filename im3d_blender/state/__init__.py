"""What is kept between two draws of the panel: preferences, properties, the queue and the backend of this session."""
