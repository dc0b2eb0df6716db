"""Writers of the containers that TensorFlow and Keras load. None of them imports TensorFlow or torch."""
