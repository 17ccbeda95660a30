from computemanager.testing import ManagerContract


class TestNone(ManagerContract):
    kind = "CW_NONE"
    pickles = False
    copies_state = False
