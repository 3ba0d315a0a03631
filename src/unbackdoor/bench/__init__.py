"""Grids of experiments: run, resume, spread over machines, rank."""

NOT_INSTALLED = "grids need MLflow and Ray; install them with pip install 'unbackdoor[bench]'"
