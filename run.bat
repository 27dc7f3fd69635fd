@echo off
rem The Windows runner beside the Makefile: run.bat demo | test
setlocal
cd /d "%~dp0"
if "%PYTHON%"=="" set PYTHON=python
if "%1"=="demo" goto demo
if "%1"=="test" goto test
echo usage: run.bat demo ^| test
exit /b 2

:demo
call :install demo ".[demo,text]" || exit /b 1
.venv\Scripts\armillary demo
exit /b %errorlevel%

:test
call :install dev ".[dev]" || exit /b 1
.venv\Scripts\python -m pytest -n 2 --dist worksteal
exit /b %errorlevel%

:install
rem %1 is the name of the mark that says it is done, %2 what is installed.
if exist .venv\.%1 exit /b 0
if not exist .venv\Scripts\python.exe (
    "%PYTHON%" -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Armillary needs Python 3.11 or newer: set PYTHON to one')" || exit /b 1
    "%PYTHON%" -m venv .venv || exit /b 1
)
.venv\Scripts\python -m pip install --quiet --disable-pip-version-check -e "%~2" || exit /b 1
type nul > .venv\.%1
exit /b 0
