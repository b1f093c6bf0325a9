# serve.py on ONNX Runtime, without torch; docs/serving.md says how to use it.
FROM python:3.13-slim
RUN pip install --no-cache-dir numpy==2.4.6 Pillow==13.0.0 onnxruntime==1.32.0
WORKDIR /app
COPY startup.py onnx_detect.py serve.py ./
COPY serving/ serving/
COPY evaluation/report.css evaluation/
USER nobody
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=3)"]
ENTRYPOINT ["python", "serve.py"]
CMD ["/model.onnx", "--host", "0.0.0.0"]
