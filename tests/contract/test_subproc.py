from computemanager.testing import ManagerContract


class TestSubproc(ManagerContract):
    kind = "CW_SUBPROC"
