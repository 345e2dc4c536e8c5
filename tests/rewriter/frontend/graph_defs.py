"""TF1 graphs for tests, written with TensorFlow's own TF1 API."""

from contextlib import contextmanager

import numpy as np


def dense(tf, *, names=("x", "probabilities")):
    """x [?, 4] -> softmax(relu(x @ w)), w constant."""
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 4], name=names[0])
        weight = tf.constant(np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3), name="w")
        v1.nn.softmax(v1.nn.relu(tf.matmul(x, weight, name="mul")), name=names[1])
    return graph.as_graph_def()


def frozen_with_variable(tf):
    """The same with a variable, as it is before it is frozen and after."""
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph, v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 4], name="x")
        weight = v1.get_variable("w", initializer=np.ones((4, 2), np.float32), use_resource=False)
        tf.identity(tf.matmul(x, weight), name="y")
        session.run(v1.global_variables_initializer())
        raw = graph.as_graph_def()
        frozen = v1.graph_util.convert_variables_to_constants(session, raw, ["y"])
    return raw, frozen


@contextmanager
def tf1_control_flow(tf):
    """Loops and branches become Enter, Switch and Merge, as TF1 wrote them."""
    from tensorflow.python.ops import control_flow_util

    before = control_flow_util.ENABLE_CONTROL_FLOW_V2
    tf.compat.v1.disable_control_flow_v2()
    try:
        yield
    finally:
        if before:
            tf.compat.v1.enable_control_flow_v2()


def loops_and_branches(tf):
    """x [?, 4] -> a TF1 while loop (Enter, Merge, Switch, Exit), then a TF1 cond; all of its ends are left unread."""
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph, tf1_control_flow(tf):
        x = v1.placeholder(tf.float32, [None, 4], name="x")
        _, y = v1.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * 2.0 + tf.constant(1.0)), [0, x])
        z = v1.cond(tf.reduce_sum(x) > 0, lambda: y + 1.0, lambda: y - 1.0)
        tf.identity(z, name="out")
    definition = graph.as_graph_def()
    assert {"Enter", "Exit", "Switch", "Merge"} <= {node.op for node in definition.node}
    return definition


def lookup(tf, *, keep_initialiser=True):
    """words [?] -> code [?] of a table; the initialiser is a node of the graph."""
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph:
        words = v1.placeholder(tf.string, [None], name="words")
        initializer = tf.lookup.KeyValueTensorInitializer(["a", "sample"], tf.constant([1, 7], tf.int64))
        table = tf.lookup.StaticHashTable(initializer, -1)
        tf.identity(table.lookup(words), name="code")
        v1.tables_initializer(name="init_all_tables")
    definition = graph.as_graph_def()
    ends = ["code", "init_all_tables"] if keep_initialiser else ["code"]
    return v1.graph_util.extract_sub_graph(definition, ends)
