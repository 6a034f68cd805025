"""The part of the model card that TRL's template does not write: the method's settings and the run's figures."""


def add_method_section(path, args, state) -> None:
    return None
