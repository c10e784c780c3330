"""The loss surface at one point: objectives, curvature operators, Krylov methods and estimators."""
