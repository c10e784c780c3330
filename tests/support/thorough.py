"""Tests that prove once more, on further cases, what others prove: left out of `make test`, run by `make thorough`.

The gate has 25 minutes on two cores. Patterns are of `fnmatch`, in which [[] is a bracket; each must match something.
"""

THOROUGH = (
    "tests/landscape/kernels/test_kernels.py::test_compiled_products_equal_the_dense_hessian[[]*_loss_fn]",
    "tests/landscape/kernels/test_kernels.py::test_compiled_products_equal_the_dense_hessian[[]batchnorm_eval]",
    "tests/landscape/kernels/test_kernels.py::test_compiled_products_equal_the_dense_hessian[[]class_weights]",
    "tests/landscape/kernels/test_kernels.py::test_compiled_products_equal_the_dense_hessian[[]multi*]",
    "tests/landscape/kernels/test_kernels.py::test_compiled_products_equal_the_dense_hessian[[]s*]",
    "tests/landscape/kernels/test_kernels.py::test_compiled_products_equal_the_dense_hessian[[]un*]",
    "tests/landscape/surface/test_alignment.py::test_aligned_networks_have_a_quarter_of_the_barrier[[]256-[12]]",
    "tests/landscape/surface/test_mode_connectivity.py::test_what_a_straight_line_divides_is_connected[[]256-*]",
    "tests/landscape/surface/test_mode_connectivity.py::test_what_a_straight_line_divides_is_connected[[]64-[12]]",
    "tests/landscape/test_exclusion.py::test_the_rest_is_where_it_is_said_to_be[[]0.5-*]",
    "tests/landscape/test_pyhessian.py::test_a_script_runs_with_its_import_changed[[]3]",
    "tests/probes/integrations/test_data_parallel.py::test_two_ranks_measure_what_one_does[[]transformers-*]",
    "tests/probes/test_undisturbed_models.py::test_a_training_is_the_same_to_the_bit[[]*-eval]",
    "tests/viz/test_robustness.py::test_of_any_run[[]*-all equal]",
    "tests/viz/test_robustness.py::test_of_any_run[[]*-every other one]",
    "tests/viz/test_robustness.py::test_of_any_run[[]*-huge thresholds]",
    "tests/viz/test_robustness.py::test_of_any_run[[]*-negative]",
    "tests/viz/test_robustness.py::test_of_any_run[[]*-no thresholds]",
    "tests/viz/test_robustness.py::test_of_any_run[[]*-tiny]",
)
