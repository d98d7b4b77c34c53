"""TensorFlow and Keras files, read without TensorFlow, and converted in a process that has it."""
