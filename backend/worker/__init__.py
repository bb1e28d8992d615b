import time

IMPORTS_BEGIN_S = time.perf_counter()  # torch comes with the first module of this package; read by start_log.py
