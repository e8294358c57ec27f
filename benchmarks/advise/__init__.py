"""Which estimator for *this* problem: the candidates, the place where they are measured, and the reference they are held against."""
