"""What is done with a trained model: classify, explain, export."""
