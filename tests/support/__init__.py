"""What several test folders share: real servers, real models, and ways to break them."""
