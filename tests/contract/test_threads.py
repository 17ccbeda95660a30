from computemanager.testing import ManagerContract


class TestThreads(ManagerContract):
    kind = "CW_THREADS"
    pickles = False
