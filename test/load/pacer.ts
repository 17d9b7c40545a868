/** The pacer of `sluice bench`: load at a fixed rate is the same load wherever it is made. */
import type * as pacer from '../../packages/server/src/cli/pacer.js'

export const { nowMs, pace } = (await import(
  new URL('./cli/pacer.js', import.meta.resolve('@sluice/server')).href
)) as typeof pacer
