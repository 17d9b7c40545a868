/** The Sluice broker, for programs that run it inside a process of their own. */
export type { BrokerStatus } from './broker/broker.js'
export { startServer, type RunningServer, type ServerOptions } from './server.js'
