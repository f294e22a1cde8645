import subprocess
import sys


def test_the_agent_and_its_client_load_no_django():
    program = (
        "import nodeagent.__main__, nodeagent.client, sys;"
        "print([name for name in sys.modules if name.partition('.')[0] in"
        " ('django', 'rest_framework', 'channels', 'celery', 'config', 'accounts', 'billing',"
        " 'templates_app', 'sandboxes', 'frontend')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_client_loads_no_agent():
    program = "import nodeagent.client, sys; print('nodeagent.agent' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
