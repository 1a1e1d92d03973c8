/* What the service tells about itself: /healthz, /readyz, /metrics. */
#ifndef API_SERVICE_H
#define API_SERVICE_H

#include "api/http.h"

enum MHD_Result service_healthz(struct request *r);
enum MHD_Result service_readyz(struct request *r);
enum MHD_Result service_metrics(struct request *r);

#endif
