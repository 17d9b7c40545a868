import type { Driver } from '../driver.js'
import { bullmq } from './bullmq.js'
import { floor } from './floor.js'
import { kafka, kafkaKafkajs } from './kafka.js'
import { nats, natsSynced } from './nats.js'
import { rabbitmqClassic, rabbitmqQuorum } from './rabbitmq.js'
import { redis } from './redis.js'
import { sluice } from './sluice.js'

export const DRIVERS: readonly Driver[] = [
  floor,
  sluice,
  rabbitmqQuorum,
  rabbitmqClassic,
  nats,
  natsSynced,
  kafka,
  kafkaKafkajs,
  redis,
  bullmq,
]
