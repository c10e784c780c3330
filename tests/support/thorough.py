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
    "tests/landscape/test_gauss_newton_memory.py::test_a_vocabulary_of_50_000_takes_less_than_three_times_its_logits[[]tied*]",
    "tests/landscape/test_minibatch_sharpness.py::test_intervals_cover[[]1]",
    "tests/landscape/test_pyhessian.py::test_a_script_runs_with_its_import_changed[[]3]",
    "tests/landscape/test_quadrature.py::test_intervals_cover[[]exponential]",
    "tests/landscape/test_quadrature.py::test_intervals_cover[[]logarithm]",
    "tests/probes/integrations/test_data_parallel.py::test_two_ranks_measure_what_one_does[[]transformers-*]",
    "tests/probes/test_smoothness.py::test_series_that_have_nothing_to_do_with_each_other_explain_nothing[[]300-*]",
    "tests/probes/test_undisturbed_models.py::test_a_training_is_the_same_to_the_bit[[]*-eval]",
    "tests/probes/test_undisturbed_models.py::test_a_training_is_the_same_to_the_bit[[]*eager attention-train]",
    "tests/probes/test_undisturbed_models.py::test_the_curvature_of_a_transformer_is_that_of_all_tokens_together[[]eager-*]",
    "tests/viz/test_demo.py::test_gradient_descent_hovers_at_the_edge_and_the_audit_says_so",
    "tests/viz/test_robustness.py::test_of_any_run[[]*-all equal]",
    "tests/viz/test_robustness.py::test_of_any_run[[]*-every other one]",
    "tests/viz/test_robustness.py::test_of_any_run[[]*-huge thresholds]",
    "tests/viz/test_robustness.py::test_of_any_run[[]*-negative]",
    "tests/viz/test_robustness.py::test_of_any_run[[]*-no thresholds]",
    "tests/viz/test_robustness.py::test_of_any_run[[]*-tiny]",
)
