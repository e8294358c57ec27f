"""What is measured and on what: problems, measurement, sweeps. Imports `estimators`, never the other way round."""
