"""What runs leave behind, and pictures of it. Measuring is not drawing."""
