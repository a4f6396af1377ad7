# One image for the workers and the publisher of docker-compose.yml.
FROM python:3.13-slim
WORKDIR /app
COPY . .
RUN pip install --no-cache-dir '.[celery]'
WORKDIR /app/examples
USER nobody
