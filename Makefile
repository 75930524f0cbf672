# make demo | test | lint | format | clean. PYTHON=python3.12 chooses the interpreter, VENV=dir the environment.

PYTHON ?= python3
VENV ?= .venv
DEMO_OUT ?= demo_out

# The environment brings a ROS of its own; a sourced /opt/ros would shadow it with libraries of another build.
unexport AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH LD_LIBRARY_PATH PYTHONHOME PYTHONPATH
unexport RMW_IMPLEMENTATION _ROS_WHEELS_BOOTSTRAP_COMPLETE

RUN := $(VENV)/bin/python -m
MADE_BY_MAKE := $(VENV)/.made_by_make
# Written last, so that an interrupted installation starts anew; named after Python's version, so that another one does.
INSTALLED := $(VENV)/.installed-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)

# Says in one line what is missing; runs on any Python.
define CHECK_PYTHON
import platform, sys
version = "%d.%d" % sys.version_info[:2]
choose = "make PYTHON=python3.12 chooses another"
if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    sys.exit("m3l needs Python 3.10 to 3.13, %s is %s; %s" % (sys.executable, version, choose))
if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
    sys.exit("ROS wheels exist for x86-64 Linux only; elsewhere build with colcon, see README.md")
try:
    import ensurepip, venv
except ImportError as error:
    sys.exit("%s has no %s: apt install python%s-venv (Debian, Ubuntu), or %s" % (sys.executable, error.name, version, choose))
endef
export CHECK_PYTHON

.PHONY: demo test lint format clean

demo: $(INSTALLED)
	$(VENV)/bin/m3l demo --out $(DEMO_OUT)

# Files side by side, in their order: the longest tests, test/integration, mostly wait, and come first.
test: lint
	$(RUN) pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy

format: $(INSTALLED)
	$(RUN) ruff check --fix
	$(RUN) ruff format

$(INSTALLED): setup.py setup.cfg pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed: apt install python3 python3-venv (Debian, Ubuntu)" >&2; exit 1; }
	@$(PYTHON) -c "$$CHECK_PYTHON"
	@test ! -e $(VENV) || test -e $(MADE_BY_MAKE) || { echo "$(VENV) exists and is not make's: choose another with VENV=dir, or let \`make clean\` remove it" >&2; exit 1; }
	@test -e $@ || { rm -rf $(VENV) && mkdir -p $(VENV) && touch $(MADE_BY_MAKE) && $(PYTHON) -m venv $(VENV); }
	$(RUN) pip install --disable-pip-version-check -c constraints.txt -e '.[ros,train,dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(DEMO_OUT)
