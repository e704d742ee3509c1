"""The loss w'Hw/2 as a function from requests to evaluations, for driving a method without an optimizer."""

from flatwise.methods import Evaluation, drive


def evaluate_around(w, h):
    def evaluate(at):
        displacement = at.displacement()
        x = w if displacement is None else w + displacement[0]
        return Evaluation(0.5 * x @ h @ x, [h @ x])

    return evaluate


def state_at(method, w, step=0):
    state = method.init([w])
    state.weights, state.step = [w], step
    return state


def direction(method, w, h):
    return drive(method, evaluate_around(w, h), state_at(method, w))[0]


def displaced_requests(method, w, h, state):
    """The displacements that the method asked for, probes apart, and the direction that it returned."""
    places, evaluate = [], evaluate_around(w, h)

    def record(at):
        displacement = at.displacement()
        if displacement is not None and not at.probe:
            places.append(displacement[0])
        return evaluate(at)

    return places, drive(method, record, state)[0]
