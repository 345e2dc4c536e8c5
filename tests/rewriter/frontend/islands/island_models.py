"""Small models with a part that ONNX has no word for; each returns a tf.Module with a `call` of fixed signature."""

import numpy as np

VOCABULARY = ["the", "cat", "sat", "on", "mat", "naïve"]
CLASSES = ["code", "prose", "poem", "ünknown"]
TEXTS = np.array([b"The cat sat", b"", "on on the MAT, na\u00efve".encode(), b"x"], dtype=object)


def weights(*shape, seed=0):
    return (np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)


def table(tf, keys, values, default):
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), default)


def classifier(tf):
    """Text -> words (regex, split, ragged) -> tables of four pairs of dtypes -> embedding -> dense -> class names."""

    class Classifier(tf.Module):
        def __init__(self):
            super().__init__()
            size = len(VOCABULARY)
            self.numbers = table(tf, VOCABULARY, tf.range(1, size + 1, dtype=tf.int64), 0)
            self.groups = table(tf, tf.range(size + 1, dtype=tf.int64), tf.range(size + 1, dtype=tf.int64) % 3, -1)
            self.weights = table(tf, VOCABULARY, tf.linspace(0.5, 1.5, size), 1.0)
            self.names = table(tf, tf.range(4, dtype=tf.int64), CLASSES, "?")
            self.embedding = tf.Variable(weights(size + 1, 8))
            self.hidden = tf.Variable(weights(8, 16, seed=1))
            self.out = tf.Variable(weights(16, 4, seed=2))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
        def call(self, text):
            clean = tf.strings.regex_replace(tf.strings.lower(text), "[^a-z\u00ef ]", "")
            words = tf.strings.split(clean).to_tensor(default_value="", shape=[None, 5])
            numbers = self.numbers.lookup(words)
            scaled = tf.gather(self.embedding, numbers) * self.weights.lookup(words)[..., None]
            hidden = tf.nn.relu(tf.reduce_mean(scaled, 1) @ self.hidden)
            logits = hidden @ self.out
            return {
                "scores": tf.nn.softmax(logits),
                "groups": self.groups.lookup(numbers),
                "name": self.names.lookup(tf.argmax(logits, 1)),
            }

    return Classifier()


def sandwich(tf):
    """An inverse in the middle of dense work."""

    class Sandwich(tf.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = tf.Variable(weights(6, 9)), tf.Variable(weights(9, 5, seed=1))

        @tf.function(input_signature=[tf.TensorSpec([None, 6], tf.float32, name="x")])
        def call(self, x):
            square = tf.reshape(tf.nn.tanh(x @ self.first), [-1, 3, 3]) + 4.0 * tf.eye(3)
            inverse = tf.linalg.inv(square)
            return {"y": tf.reshape(inverse, [-1, 9]) @ self.second}

    return Sandwich()


def two_in_sequence(tf):
    """Strings -> dense -> strings."""

    class Two(tf.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = tf.Variable(weights(16, 32)), tf.Variable(weights(32, 4, seed=1))
            self.names = table(tf, tf.range(4, dtype=tf.int64), CLASSES, "?")

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
        def call(self, text):
            buckets = tf.strings.to_hash_bucket_fast(tf.strings.substr(text, 0, 3), 16)
            logits = tf.nn.relu(tf.one_hot(buckets, 16) @ self.first) @ self.second
            name = self.names.lookup(tf.argmax(logits, 1))
            return {"logits": logits, "label": tf.strings.join([name, text], separator=": ")}

    return Two()


def parallel(tf):
    """An island beside dense work, joined behind both."""

    class Parallel(tf.Module):
        def __init__(self):
            super().__init__()
            self.dense, self.last = tf.Variable(weights(8, 8)), tf.Variable(weights(8, 3, seed=1))

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, 8], tf.float32, name="x"),
                tf.TensorSpec([None], tf.string, name="text"),
            ]
        )
        def call(self, x, text):
            dense = tf.nn.relu(x @ self.dense)
            length = tf.cast(tf.strings.length(text, unit="UTF8_CHAR"), tf.float32)
            return {"y": (dense * length[:, None]) @ self.last}

    return Parallel()


def spectrum(tf, complex_output=False):
    """Dense work, a spectrum with its phase, dense work."""

    class Spectrum(tf.Module):
        def __init__(self):
            super().__init__()
            self.mel = tf.Variable(weights(129, 20))

        @tf.function(input_signature=[tf.TensorSpec([None, 2048], tf.float32, name="audio")])
        def call(self, audio):
            frames = tf.signal.stft(audio, 256, 128, fft_length=256)
            power = tf.square(tf.math.real(frames)) + tf.square(tf.math.imag(frames))
            found = {"mel": tf.math.log(power @ self.mel.value() ** 2 + 1e-3)}
            return {**found, "frames": frames} if complex_output else found

    return Spectrum()


def area(tf):
    """Area resize in front of convolutions."""

    class Area(tf.Module):
        def __init__(self):
            super().__init__()
            self.kernel, self.dense = tf.Variable(weights(3, 3, 3, 4)), tf.Variable(weights(4, 5, seed=1))

        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, name="image")])
        def call(self, image):
            small = tf.image.resize(image / 255.0, (16, 16), method="area")
            features = tf.nn.relu(tf.nn.conv2d(small, self.kernel, 1, "SAME"))
            return {"logits": tf.reduce_mean(features, [1, 2]) @ self.dense}

    return Area()


def jpeg(tf):
    """Encoded images -> decoded one by one in a loop -> convolution."""

    class Jpeg(tf.Module):
        def __init__(self):
            super().__init__()
            self.kernel = tf.Variable(weights(3, 3, 3, 4))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="encoded")])
        def call(self, encoded):
            def decode(data):
                return tf.image.resize(tf.image.decode_jpeg(data, channels=3), (16, 16))

            images = tf.map_fn(decode, encoded, fn_output_signature=tf.TensorSpec([16, 16, 3], tf.float32))
            return {"y": tf.reduce_mean(tf.nn.conv2d(images / 255.0, self.kernel, 1, "SAME"), [1, 2])}

    return Jpeg()


def branches(tf):
    """A branch whose bodies work on strings, then dense work; a table is read in a loop."""

    class Branches(tf.Module):
        def __init__(self):
            super().__init__()
            self.numbers = table(tf, tf.range(5, dtype=tf.int64), tf.range(5, dtype=tf.int64)[::-1], 7)
            self.dense = tf.Variable(weights(8, 3))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
        def call(self, text):
            upper = tf.cond(
                tf.size(text) > 2, lambda: tf.strings.upper(text), lambda: tf.strings.regex_replace(text, "a", "b")
            )
            number = tf.strings.to_hash_bucket_fast(upper, 5)
            _, number = tf.while_loop(
                lambda i, _: i < 3, lambda i, n: (i + 1, self.numbers.lookup(n)), [tf.constant(0), number]
            )
            return {"y": tf.nn.tanh(tf.one_hot(number, 8) @ self.dense)}

    return Branches()


def checked(tf):
    """An assertion on the words that an island makes, and one on the numbers that are exported."""

    class Checked(tf.Module):
        def __init__(self):
            super().__init__()
            self.dense = tf.Variable(weights(8, 3))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
        def call(self, text):
            length = tf.strings.length(text)
            with tf.control_dependencies([tf.debugging.assert_less(length, 100, message="too long")]):
                bucket = tf.strings.to_hash_bucket_fast(tf.strings.strip(text), 8)
            return {"y": tf.one_hot(bucket, 8) @ self.dense}

    return Checked()
